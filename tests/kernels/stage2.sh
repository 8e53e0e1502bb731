#!/bin/sh
# The rest of the start of the virtual machine, in its root directory, and then the script `command` of a directory.
# Usage: stage2.sh CHECKOUT MODULES DIRECTORY
#
# Three serial lines: what the kernel says, what the command says, and the command's exit code.
checkout=$1 modules=$2 work=$3
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
exec </dev/null >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
mount -t tmpfs -o mode=0755 none /run
mkdir -p /run/lock /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=0620,ptmxmode=0666 none /dev/pts
mount -t tmpfs -o mode=1777 none /dev/shm
mount -t cgroup2 none /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
mkdir -p /lib/modules
mount --bind "$modules" /lib/modules
for module in fuse loop overlay erofs ext4 virtio_net nf_tables; do modprobe -q "$module"; done
busybox ip link set lo up
busybox ip link set eth0 up
busybox ip addr add 10.0.2.15/24 dev eth0
busybox ip route add default via 10.0.2.2
rm -f /etc/resolv.conf
echo "nameserver 10.0.2.3" >/etc/resolv.conf
busybox hostname mica
# Whoever goes on working in the checkout changes nothing here any more: each file is copied to our disk.
cd "$checkout" && find . -maxdepth 1 -type f -exec touch -c -a {} + &&
    find src tests demo benchmarks docs requirements -type f -exec touch -c -a {} + && sh "$work/command"
echo "$?" >/dev/ttyS2
sync
busybox poweroff -f

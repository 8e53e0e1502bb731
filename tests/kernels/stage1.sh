#!/bin/busybox sh
# The first program of the virtual machine, in its initramfs: makes the root directory and goes there.
#
# The root is this machine's own, read through 9p and never written: what the guest writes goes to its disk. So the
# tests find the same programs, the same .venv and the same checkout, and only the kernel is another.
set -e
/bin/busybox mkdir -p /proc /sys /dev /host /disk /new
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
. /parameters
echo "$mark"
[ -z "$is_probe" ] || poweroff -f
while read -r module; do insmod "/modules/$module"; done </modules/order
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host
mount -t ext4 /dev/vda /disk
mkdir -p /disk/upper /disk/work /disk/tmp /disk/mica
chmod 1777 /disk/tmp
mount -t overlay -o lowerdir=/host,upperdir=/disk/upper,workdir=/disk/work,index=off,xino=off,metacopy=off none /new
for place in proc sys dev; do mount --move "/$place" "/new/$place"; done
# Tests and caches are on the disk itself, as they would be elsewhere, and not on overlayfs.
mkdir -p /new/var/lib/mica
mount --bind /disk/tmp /new/tmp
mount --bind /disk/mica /new/var/lib/mica
exec switch_root /new /bin/sh "$checkout/tests/kernels/stage2.sh" "$checkout" "$modules" "$work"

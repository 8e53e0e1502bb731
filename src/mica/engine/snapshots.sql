-- The snapshots of one engine; the canonical description of the database. Version: PRAGMA user_version = 1.

CREATE TABLE snapshot (
    id     TEXT PRIMARY KEY,  -- the engine's name of it, also its directory's
    -- NULL: the lowest of its chain.
    parent TEXT REFERENCES snapshot (id),
    -- rw: the scratch layer of a container; ro: a layer of an image. Thin is a property of the files, found at mount time.
    kind   TEXT NOT NULL CHECK (kind IN ('ro', 'rw')),
    -- SELinux label for mounts of it; empty: none.
    label  TEXT NOT NULL,
    -- Bytes of file content; NULL: not known, since it was not made of an archive.
    size   INTEGER,
    -- How often the engine was given the mounted snapshot and has not given it back. Survives the driver, as mounts do.
    mounts INTEGER NOT NULL DEFAULT 0 CHECK (mounts >= 0),
    -- 0: mode and owner of the root directory are still those of an empty directory and have to be copied from below.
    rooted INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX snapshot_parent ON snapshot (parent);

-- What holds for all snapshots. union: the kind of union whose signs they have, overlay or aufs.
CREATE TABLE setting (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- A catalog, schema 2.5 revision 7: one directory subtree without the subtrees of its nested catalogs.
-- The canonical description is docs/format/catalog.md; the statements here are what is stored, column for column.

CREATE TABLE catalog (
    md5path_1 INTEGER,  -- MD5 of the absolute path, first eight bytes as a signed little-endian number
    md5path_2 INTEGER,  -- the other eight
    parent_1 INTEGER,   -- path hash of the containing directory; (0, 0) for the root of the repository
    parent_2 INTEGER,
    hardlinks INTEGER,  -- group << 32 | link count; group 0: not hard linked; groups are local to this catalog
    hash BLOB,          -- 20 digest bytes of the bulk object; NULL where there is none
    size INTEGER,       -- bytes; devices: makedev number; links: length of the raw target
    mode INTEGER,       -- st_mode with the type
    mtime INTEGER,      -- seconds, may be negative
    mtimens INTEGER,    -- 0..999999999, NULL: unknown
    flags INTEGER,      -- kind, hash algorithm, compression
    name TEXT,          -- base name; '' only for the root of the repository, never NULL
    symlink TEXT,       -- raw target, '' for everything else, never NULL
    uid INTEGER,
    gid INTEGER,
    xattr BLOB,         -- NULL: none
    CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2)
);

CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2);

CREATE TABLE chunks (
    md5path_1 INTEGER,
    md5path_2 INTEGER,
    offset INTEGER,     -- plain bytes; sorted they begin at 0 and leave no gap
    size INTEGER,
    hash BLOB,
    CONSTRAINT pk_chunks PRIMARY KEY (md5path_1, md5path_2, offset, size),
    FOREIGN KEY (md5path_1, md5path_2) REFERENCES catalog (md5path_1, md5path_2)
);

CREATE TABLE nested_catalogs (
    path TEXT,          -- absolute path of the mountpoint
    sha1 TEXT,          -- digest text of the catalog object, without its suffix, in whatever algorithm
    size INTEGER,       -- bytes of the SQLite file
    CONSTRAINT pk_nested_catalogs PRIMARY KEY (path)
);

CREATE TABLE bind_mountpoints (
    path TEXT,
    sha1 TEXT,
    size INTEGER,
    CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path)
);

CREATE TABLE statistics (
    counter TEXT,
    value INTEGER,
    CONSTRAINT pk_statistics PRIMARY KEY (counter)
);

CREATE TABLE properties (
    key TEXT,
    value TEXT,
    CONSTRAINT pk_properties PRIMARY KEY (key)
);

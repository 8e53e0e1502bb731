"""The release manager: from files to objects, catalogs, and a signed revision."""

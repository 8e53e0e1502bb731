"""The client: from the URL of a repository to verified bytes in a cache."""

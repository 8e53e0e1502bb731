"""The client: from the URL of a repository to verified local files."""

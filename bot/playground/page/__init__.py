"""The playground's web page: its API, its client, and the files in `static`."""

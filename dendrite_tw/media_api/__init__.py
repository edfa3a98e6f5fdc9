"""Media: upload, download, thumbnails."""

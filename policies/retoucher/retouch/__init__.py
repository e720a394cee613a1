"""`retouch-portrait`: every face of a photo."""

"""The page of `retouch-portrait --serve`."""

"""The one decoder and encoder of pictures, and colour spaces."""

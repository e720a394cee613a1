"""A blind test with people: make a study from folders of pictures, serve it as a local web page, report what the raters said."""

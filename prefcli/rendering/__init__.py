"""Statistics as an HTML page, and the course of a training as a picture.

Both are Jinja2 templates in ``templates/``. Neither needs a network or a script.
"""

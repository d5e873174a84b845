"""An HTTP service for features and similar images, as an ASGI application."""

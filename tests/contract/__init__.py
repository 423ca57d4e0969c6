"""Claims about every endpoint, asked in this process through ASGI: no sockets."""

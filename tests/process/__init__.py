"""Tests of real processes: a server as an operator starts it, asked over real sockets."""

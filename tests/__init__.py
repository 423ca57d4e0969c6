"""Tests of the engine, the server and the command line."""

"""Tests of the project itself: what it exports, documents and ships."""

"""Tests of what breaks: kills, full disks, locked and lost databases, executors that hang."""

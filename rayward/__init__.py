"""The command line. Modules parse and print; what a command does is a function of the other packages."""

from rayward.application import app, main

__all__ = ["app", "main"]

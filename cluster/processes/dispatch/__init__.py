"""Processes of a run: Ray itself, where roles are placed, pools that replace the lost, clean ends."""

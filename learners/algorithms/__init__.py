"""The mathematics, each in the file of its name. Imports torch only."""

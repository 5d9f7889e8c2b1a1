"""Constraints on a text that a program can check, after IFEval (Zhou et al. 2023, arXiv:2311.07911, table 1), and their reward.

The checkers are our own, one file a family; their arguments have the names of IFEval's data.
"""

"""Statistics of outcomes: intervals, differences, multiple comparisons, power.

It knows no study and no folder. Outcomes of a method are a table (seeds x problems), both random:
results are about new seeds and new problems.
"""

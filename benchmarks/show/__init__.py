"""Records for people. One file per kind of record has its table, its plot and its numbers; `kinds` has them all.

table, figure, terminal    what the kinds draw with
kinds                      which kind a record is of
library                    committed records, newest code first, and of which code each number is
goals, headlines           numbers beside what was aimed at, and the README's table
"""

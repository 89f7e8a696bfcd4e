"""Adapts a network to a camera, from rainy frames only: a teacher cleans some, and a small network learns from them.

shots.py     selects frames of the videos, and those that are held back
teacher.py   one or several networks that clean them
cache.py     rainy and cleaned frames on disk, as a data set of pairs
batches.py   crops of them, and of other pairs against forgetting
learning.py  the student's steps, fitted to the clock
scoring.py   how close the student is to its teacher, and how good it is on pairs with truth
run.py       everything together, from videos to a checkpoint
page.py      a report of the result
warnings.py  each warning about the inputs once
"""

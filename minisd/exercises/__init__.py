"""Exercises: a student writes a part of the model, and check() says at once what is right.

    from minisd.exercises import check, hint

    def attend(q, k, v, mask=None): ...

    check("attend", attend)

specs/ holds one file for each exercise. The other files hold what all exercises need.
"""

from minisd.exercises.bug_hunt import bug_hunt as bug_hunt
from minisd.exercises.check import check as check
from minisd.exercises.check import hint as hint
from minisd.exercises.check import portrait as portrait
from minisd.exercises.check import question as question
from minisd.exercises.check import solution as solution
from minisd.exercises.mine import use_own_parts as use_own_parts
from minisd.exercises.mine import yours as yours
from minisd.exercises.progress import next_exercise as next_exercise
from minisd.exercises.swap import swap as swap

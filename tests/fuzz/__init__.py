"""Broken and hostile input for everything in minisd that reads files, prompts or arguments.

    python -m tests.fuzz --cases 50000            the long run: fresh seeds, a table at the end
    python -m tests.fuzz --replay FOLDER          one saved fault again
    python -m tests.fuzz --guided --reader lora   guided by coverage, where atheris is installed

tests/test_fuzz.py runs a short part of it with fixed seeds. docs/security.md says what is promised.

    case.py         one input, and one reader
    edits/          how good files are broken, by what they are
    good.py         the smallest good file of every kind
    readers/        what is read, and by which function
    watch.py        time, memory and what the interpreter is asked to do
    judge.py        the verdict on one case
    run.py          many cases
    worker.py       a process of its own for them, which may die
    guided.py       the same cases, driven by atheris
    hostile.py      pickles that try to run code
"""

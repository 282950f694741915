"""Everything about the mini model itself: its pictures, captions, trainings and evaluation.

Read in this order:
    captions        what a scene is, and the grammar of captions
    emoji, scenes   the pictures of emoji, and the training pictures composed of emoji
    datasets        composes and encodes all pictures of a training, before the training starts
    recipes         how each shipped file is trained: one Recipe for each file
    job, stages     the options of `minisd train`, and how the command runs one training
    minutes         chooses the number of steps if the user gives a number of minutes
    partial_files   files that hold only the weights that differ from the shipped mini
    judge           a classifier that says what a picture shows (train_judge trains the judge)
    evaluate        measures the mini: how many pictures are right, the attention maps, the speed
You can read the other files in any order:
    cats_and_dogs   a small model that draws cats and dogs without a prompt
    styles          two styles of pictures, on which adapters are trained
    agreement       compares edges, draws with a classifier, finds similar training pictures
    examples        the input pictures of docs/steering.md
"""

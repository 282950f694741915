"""Everything about the mini model itself: its pictures, captions, trainings and evaluation.

Read in this order:
    captions        what a scene is, and the grammar of captions
    emoji, scenes   the pictures of emoji, and the training pictures composed of emoji
    datasets        pictures encoded once before a training
    recipes         how each shipped file is trained: one Recipe for each, and a function to run it
    job, stages     the options of `minisd train`, and how the command runs one stage
    minutes         chooses the number of steps for a training of some minutes
    partial_files   files that hold only the weights that differ from the shipped mini
    judge           a classifier that says what a picture shows (train_judge trains it)
    evaluate        measures the model: the share of right pictures, its attention, its speed
You can read the other files in any order:
    cats_and_dogs   a small model without prompts
    styles          two styles, for training adapters
    agreement       how well pictures agree with edges, classes or training pictures
    examples        the input pictures of docs/steering.md
"""

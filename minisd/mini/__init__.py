"""Everything about the mini model itself: its pictures, captions, trainings and evaluation.

Read in this order:
    captions        what a scene is, and the grammar of captions
    emoji, scenes   the cut-outs, and the training pictures composed from them
    datasets        pictures encoded once before a training
    recipes         how each shipped file is trained: one Recipe each, and one runner
    job, stages     what `minisd train` asks for, and how it runs one stage
    minutes         as many steps as fit into some minutes
    partial_files   files that hold only what differs from the shipped mini
    judge           a classifier that says what a picture shows (train_judge trains it)
    evaluate        are the pictures right, where does the model look, how fast is it?
The others stand alone: cats_and_dogs (a model without prompts), styles (for the adapters),
agreement (with edges, with a classifier), examples (the input pictures of docs/steering.md).
"""

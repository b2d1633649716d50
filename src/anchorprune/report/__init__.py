"""What a person reads: the tables, the charts, pictures of kept tokens, and the offline pages that hold them.

Nothing here needs torch or knows the commands: it takes results (`anchorprune.evaluation`), Pillow images and numbers.
"""

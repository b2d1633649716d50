"""Images in, embeddings out: what to read, what to write, what is done already.

The folder is not called like the call, `anchorprune.encode`: importing a folder makes its name the folder's.
"""

"""The same work in one process, on many processes (`ranks.py`) and on many machines (`ray.py`).

The seam is `jobs.Engine`: jobs in, an iterator over each job and what became of it out. Importing these files imports
neither torch nor Ray.
"""

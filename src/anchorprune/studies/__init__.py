"""Questions that take several evaluations to answer, one file each: they return objects that can be printed and saved.

They stand between the bench (evaluation, report) and the doors (commands): a sweep is a list of requests in one pass.
"""

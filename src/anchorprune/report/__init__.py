"""What a person reads: the table, the accuracy-against-compute chart, pictures of kept tokens, one offline page.

Nothing here knows the demo or needs torch: it takes results (`anchorprune.results`), Pillow images and numbers.
"""

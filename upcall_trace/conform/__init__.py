"""Does a guest answer as the model of Kata's kernel says?"""

"""The tables of the user component: each module holds one group of statements and its pruning rule."""

"""One thread per process, as an actor has: two cores shared by many threads make small networks crawl."""

import torch

torch.set_num_threads(1)

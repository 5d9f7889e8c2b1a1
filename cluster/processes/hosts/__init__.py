"""What a run keeps on each of its hosts: published weights in shared memory, and the folder that holds them."""

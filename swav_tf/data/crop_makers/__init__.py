"""Who makes the crops beside this process's own threads: processes of this machine, a tf.data service."""

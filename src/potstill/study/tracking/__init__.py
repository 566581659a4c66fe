"""Sends a study's metrics to experiment trackers, from processes of their own.

The study's folder is the source of truth. One process per tracker follows it and sends the rows
that the tracker does not have yet. So no run waits for a tracker or fails with one, the runs of
any number of processes are covered, and a run that was killed and continues has every step
exactly once: its second attempt at a step gives the same numbers. Rows that cannot be sent are
noted in the run's folder and sent later, by the next `potstill study` or by `potstill track`.
Baselines train nothing and are not sent.

`registry` lists the trackers, `protocol` is what their modules implement, `follower` reads the
folder, `exporter` starts and stops the processes.
"""

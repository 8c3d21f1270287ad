"""Search settings with Ray Tune: a trial trains one member of a population, not a model of its own.

How a trial travels, file by file:

1. `search` gives Tune the space, the search algorithm and the scheduler; Tune starts a `TuneTrial` (`trainable`) for each trial.
2. `TuneTrial` asks the `SchedulerActor` (`scheduler_actor`), one actor on the driver's node, for the trial's next report.
3. `SlotAssignment` (`slot_assignment`) queues the trial and assigns it to a slot of a worker; `CallPolicy` (`call_policy`)
   decides when the worker's next call begins and how many updates it makes.
4. `WorkerGroup` (`worker_group`) makes that call on all ranks of the worker; a rank is a Ray actor around a `Replica`.
5. `Replica` (`model_replica`) trains the members in its slots in shared passes and returns a `Progress` (`messages`).
6. `TrialStates` (`trial_states`) records the progress and writes it through `TrialDir` (`trial_dir`) to the trial's folder;
   the report of a validation goes back to Tune, whose scheduler continues or stops the trial.

`run` is the verb from top to bottom; `cluster` starts or joins Ray and `cluster_monitor` notices its end; `resume` compares a
folder with the sweep; `dry_run` and `time_estimate` predict the cost.
"""

"""What every engine of the store must hold: conformance classes that an engine's tests inherit.

An engine's test module brings the fixtures `store`, a `BlockingStore` over an open, empty store, and `tables`, its
database past the store's code, and inherits:

    events       EventConformance          events and completeness as stored and shown, a group with a bad submission
    sync_events  SyncEventConformance      history, repeated failures, the fleet
    access       TokenConformance          create, rotate, revoke, look up
                 EnrollmentConformance     codes and the devices they let in
                 DeviceConformance         move, rename
    acts         ActConformance            notes, conflicts, sites, suspicious devices, requests for a sync
    sessions     SessionConformance        opened by a token, kept open by use, ended with their token
    audit        AuditConformance          what each act leaves in the audit log
                 TamperingConformance      a change of the log past the store is found
    fleet        FleetConformance         states, sites, filters, pages while devices change
    queries      QueryConformance          devices, events, pages, snapshots
    retention    RetentionConformance      what is deleted stays accounted for
    erasure      ErasureConformance        nothing of an erased learner is left, and nothing comes back
    sums         SumConformance            daily sums equal a recount of the rows
                 SumQueryConformance       causes, speeds, runs and activity: sites, days, pages
    tables       KeyConformance            the database's own keys refuse a second row
    properties   PropertyConformance       outcomes and rows equal those of the reference engine, whatever arrives
    costs        CostConformance          what a request costs does not depend on the past
    showing      ShowingConformance       what is accepted, every answer, export, metric, message and notice can show

Decisions are the same for every engine: their rules are tested without a database, in tests/unit/test_decide*.
"""

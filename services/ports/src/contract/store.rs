//! The contract of [`crate::store`].

mod access;
mod build;
mod commands;
mod components;
mod fleet;
mod fold;
mod history;
mod intent;
mod parts;
mod recovery;
mod rollouts;

use crate::store::Store;

/// Runs every case, each on an empty store that `make` gives.
pub async fn all<S: Store>(make: impl AsyncFn() -> S) {
    fold::a_partition_row_is_made_once(&make().await).await;
    fold::a_commit_moves_the_row(&make().await).await;
    fold::an_old_generation_writes_nothing(&make().await).await;
    fold::one_of_two_commits_wins(&make().await).await;
    fold::moved_intent_writes_nothing(&make().await).await;
    fold::many_agents_in_one_commit(&make().await).await;
    fold::agents_are_found_by_key(&make().await).await;
    fold::a_partition_is_paged_in_key_order(&make().await).await;
    fold::cells_and_partitions_are_apart(&make().await).await;
    fold::a_cell_leaves_the_agent_of_another_as_it_is(&make().await).await;
    fold::entries_are_quarantined_with_the_commit(&make().await).await;
    fold::orphans_are_live_sessions_of_dead_gateways(&make().await).await;

    parts::every_part_is_read_back(&make().await).await;
    parts::every_kind_of_session_is_read_back(&make().await).await;
    parts::a_part_that_is_not_written_stays(&make().await).await;
    parts::a_new_agent_is_written_whole(&make().await).await;
    parts::an_effective_config_is_replaced_whole(&make().await).await;

    intent::there_is_none_at_first(&make().await).await;
    intent::a_change_raises_the_revision_by_one(&make().await).await;
    intent::a_floor_rises_to_the_revision_of_its_change(&make().await).await;
    intent::another_try_is_asked_for_at_the_revision_of_its_change(&make().await).await;
    intent::a_revision_is_advanced_and_never_goes_back(&make().await).await;
    intent::a_stale_plan_writes_nothing(&make().await).await;
    intent::one_of_two_changes_wins(&make().await).await;
    intent::an_empty_change_raises_nothing(&make().await).await;
    intent::templates_stand_in_the_order_of_their_creation(&make().await).await;
    intent::an_assignment_is_replaced(&make().await).await;
    intent::labels_are_set_and_removed(&make().await).await;
    intent::labels_raise_the_revision_when_they_change(&make().await).await;
    intent::an_unknown_agent_has_no_labels(&make().await).await;
    intent::a_label_moves_the_intent_under_plans_and_commits(&make().await).await;
    intent::tenants_are_apart(&make().await).await;

    history::changes_are_remembered(&make().await).await;
    history::what_is_deleted_is_gone(&make().await).await;
    history::owners_come_and_go(&make().await).await;

    components::a_list_is_stored_once_a_hash(&make().await).await;
    components::lists_of_other_tenants_and_types_are_others(&make().await).await;
    components::the_lists_that_changed_last_are_kept(&make().await).await;
    commands::a_command_is_read_back(&make().await).await;
    commands::all_are_queued_or_none(&make().await).await;
    commands::the_queue_of_a_tenant_is_bounded(&make().await).await;
    commands::queued_ones_come_in_order(&make().await).await;
    commands::a_commit_settles_what_is_queued(&make().await).await;
    commands::a_commit_settles_all_or_writes_nothing(&make().await).await;
    commands::one_of_two_commits_settles_a_command(&make().await).await;
    commands::an_agents_latest_come_first(&make().await).await;
    commands::old_settled_ones_are_forgotten(&make().await).await;
    commands::tenants_are_apart(&make().await).await;

    access::the_default_tenant_is_there(&make().await).await;
    access::a_tenant_is_made_limited_and_removed(&make().await).await;
    access::tenants_are_paged_by_name(&make().await).await;
    access::what_a_removed_tenant_had_is_gone(&make().await).await;
    access::a_tenant_with_connected_agents_stays(&make().await).await;
    access::a_token_is_found_by_its_digest(&make().await).await;
    access::a_tenant_has_so_many_tokens(&make().await).await;
    access::the_first_token_is_made_once(&make().await).await;
    access::tokens_are_revoked_by_id_and_by_account(&make().await).await;
    access::tokens_of_tenants_are_apart(&make().await).await;
    access::changes_write_their_record(&make().await).await;
    access::a_change_that_is_not_written_has_no_record(&make().await).await;
    access::records_are_chained_in_order(&make().await).await;
    access::records_are_filtered_and_paged(&make().await).await;
    access::records_at_once_are_one_after_the_other(&make().await).await;

    fleet::an_agent_is_read_with_all_its_parts(&make().await).await;
    fleet::a_tenant_is_paged_in_order_of_uids(&make().await).await;
    fleet::tenants_are_apart(&make().await).await;
    fleet::an_agent_of_two_cells_is_shown_once(&make().await).await;
    fleet::a_selector_filters(&make().await).await;
    fleet::a_filter_finds_agents_by_liveness_and_drift(&make().await).await;
    fleet::a_selector_sees_what_was_written_last(&make().await).await;
    fleet::a_cluster_has_one_id(&make().await).await;

    recovery::everything_that_counts_is_lifted(&make().await).await;
    recovery::who_decided_before_writes_nothing(&make().await).await;
    recovery::another_cell_is_left_alone(&make().await).await;

    rollouts::a_rollout_begins_with_its_change(&make().await).await;
    rollouts::a_step_is_taken_once(&make().await).await;
    rollouts::one_of_two_steps_wins(&make().await).await;
    rollouts::a_step_that_moves_the_intent_fences_commits(&make().await).await;
    rollouts::a_change_supersedes_what_has_not_moved(&make().await).await;
    rollouts::counts_are_written_with_the_commit(&make().await).await;
}

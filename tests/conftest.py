"""What every test needs: the same surroundings wherever it is started, MXNet as the scripts set it up, data to read."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from base.runtime import prepare_mxnet
from tests.drawn_images import draw_cifar, draw_photographs

prepare_mxnet()  # before any test module imports MXNet

# A script's job in the background begins with Ctrl-C ignored, and nohup's with SIGHUP; what the tests start would
# inherit that. A handler, even one that does nothing, is not inherited.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, lambda *_: None)
signal.pthread_sigmask(signal.SIG_SETMASK, ())

ROOT = Path(__file__).parent.parent


# What `scripts/test.sh --quick` leaves out, files and single tests: those that take seconds each.
SLOW = {
    "test_attention_masks.py::test_a_network_made_fast_gives_the_same_masks_and_then_the_same_classes",
    "test_benchmark.py",
    "test_bfloat16.py",
    "test_benchmark_loaders.py",
    "test_benchmark_sync.py",
    "test_constants.py",
    "test_engines.py",
    "test_environment.py::test_a_read_only_log_folder_is_named",
    "test_environment.py::test_data_that_vanish_under_a_training_end_it_in_one_line",
    "test_environment.py::test_a_full_disk_ends_in_one_line_and_the_run_goes_on_with_more_room",
    "test_environment.py::test_wherever_the_disk_is_full_the_run_can_go_on",
    "test_export.py",
    "test_fine_tuning.py::test_a_classifier_of_as_many_other_classes_starts_anew",
    "test_fine_tuning.py::test_a_frozen_part_computes_in_training_what_it_does_in_validation",
    "test_fine_tuning.py::test_a_resumed_run_keeps_what_is_frozen_and_ends_as_one_that_was_not_stopped",
    "test_fine_tuning.py::test_replicas_keep_what_is_frozen",
    "test_fine_tuning.py::test_saving_memory_changes_no_bit_of_it",
    "test_fine_tuning.py::test_what_cannot_be_started_from_is_refused_in_one_line",
    "test_fine_tuning.py::test_what_fits_is_taken_and_the_rest_starts_anew",
    "test_fine_tuning.py::test_what_is_frozen_does_not_move_and_the_rest_does",
    "test_fuzz.py",
    "test_half_precision.py::test_workers_that_begin_differently_have_one_float32_copy",
    "test_hostile_images.py",
    "test_imagenet.py::test_the_command_says_what_it_did_and_refuses_in_one_line",
    "test_imagenet_training.py",
    "test_launch.py::test_a_death_ends_the_others",
    "test_launch.py::test_the_scripts_for_8_gpus_name_what_is_missing_before_they_build_anything",
    "test_learning.py",
    "test_model.py::test_a_whole_fused_network_gives_the_plain_ones_first_output",
    "test_model.py::test_every_depth_runs_forward_and_backward",
    "test_model.py::test_every_unit_makes_a_network_that_learns",
    "test_model.py::test_folding_gives_a_whole_plain_networks_outputs",
    "test_model.py::test_folding_gives_the_plain_forms_outputs",
    "test_model.py::test_hybridized_and_imperative_agree",
    "test_model.py::test_masks_pool_three_two_and_one_times_and_end_in_a_sigmoid",
    "test_model.py::test_one_network_takes_any_size_its_strides_allow",
    "test_network_file.py::test_variants_are_built_anew_from_their_file",
    "test_pictures.py::test_a_training_shows_its_masks_and_learns_the_same",
    "test_pictures.py::test_an_evaluation_agrees_with_the_network",
    "test_pictures.py::test_an_evaluation_takes_the_mean_over_mirror_images_where_it_is_told_to",
    "test_pictures.py::test_every_module_is_drawn_for_every_image",
    "test_pictures.py::test_files_are_drawn_and_what_is_none_is_named",
    "test_pictures.py::test_json_names_what_is_no_image",
    "test_pictures.py::test_predictions_are_those_of_the_network_on_the_loaders_images",
    "test_pictures.py::test_what_cannot_work_is_refused_in_one_line",
    "test_pictures.py::test_what_is_no_image_is_named_and_the_others_are_done",
    "test_output.py::test_a_run_has_the_lines_that_nobody_took",
    "test_plot_curves.py",
    "test_recomputation.py",
    "test_reproduce.py::test_a_row_trains_goes_on_and_comes_into_the_table",
    "test_records.py::test_a_folder_without_the_right_to_write_is_named_in_one_line",
    "test_records.py::test_one_process_at_a_time_holds_a_lock_and_leaves_no_file",
    "test_resume.py::test_a_batch_with_a_bad_loss_can_be_left_out",
    "test_resume.py::test_a_killed_run_goes_on_from_its_last_checkpoint",
    "test_resume.py::test_a_path_is_a_run_or_one_of_its_checkpoints",
    "test_resume.py::test_a_run_stopped_in_its_validation_does_not_train_again",
    "test_resume.py::test_a_stopped_run_ends_as_one_that_was_not",
    "test_resume.py::test_more_epochs_move_what_follows_from_their_number",
    "test_resume.py::test_other_devices_are_said_with_what_they_change",
    "test_resume.py::test_the_average_of_the_weights_goes_on_to_the_bit",
    "test_runtime.py::test_mxnet_runs_with_the_thread_count_that_was_prepared",
    "test_experiments.py::test_a_plan_is_printed_with_its_hours",
    "test_experiments.py::test_a_stopped_experiment_goes_on_and_ends_in_a_table",
    "test_sanity.py",
    "test_signals.py::test_a_second_ctrl_c_leaves_a_whole_checkpoint",
    "test_signals.py::test_a_signal_saves_and_says_how_to_go_on",
    "test_signals.py::test_the_tests_may_be_started_with_signals_ignored",
    "test_summary.py::test_stages_add_up",
    "test_summary.py::test_the_table_ends_in_the_published_figures",
    "test_summary.py::test_what_there_is_no_table_of_is_refused_in_one_line",
    "test_sync.py",
    "test_torture.py",
    "test_trained.py",
    "test_training.py",
}


def pytest_collection_modifyitems(items):
    for item in items:
        if not SLOW.isdisjoint({item.path.name, f"{item.path.name}::{item.originalname}"}):
            item.add_marker("slow")


def shared_data_set(name):
    """The path of something in the folder of real data sets, RAN_DATASETS; None where it is missing."""
    path = Path(os.environ.get("RAN_DATASETS", ROOT.parent / "shared" / "datasets")) / name
    return path if path.exists() else None


def run_script(script, *flags, **options):
    """Run a script from the repository's root; returns the finished process."""
    command = [sys.executable, script, *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


def run_module(name, *flags):
    """Run a module as python -m does, from the repository's root; returns the finished process."""
    return run_script("-m", name, *flags)


def wait_until(condition, seconds=120):
    """Wait until ``condition()`` is true, or for a time that is long even on a busy machine. Returns whether it is."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


@pytest.fixture
def processes(tmp_path):
    """Starts processes that are killed at the end."""
    from tests.engines import Processes  # which imports this module

    with Processes(tmp_path) as started:
        yield started


def assert_refused(process, *words):
    """A finished process said in one line what is wrong, with these words in it."""
    assert process.returncode == 2, process.stdout + process.stderr
    assert process.stderr.count("\n") == 1 and all(word in process.stderr for word in words), process.stderr


@pytest.fixture(autouse=True)
def same_draws():
    """MXNet's own random numbers are the same in a test whichever tests ran before it."""
    if "mxnet" in sys.modules:
        sys.modules["mxnet"].random.seed(0)


@pytest.fixture(scope="module")
def new_folder(tmp_path_factory):
    """Makes folders for all tests of a module, which go with it: a trained network takes a hundred megabytes."""
    made = []

    def make(name):
        made.append(tmp_path_factory.mktemp(name))
        return made[-1]

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def real_images(tmp_path_factory):
    """A folder with 500 + 100 CIFAR-10 images in the official binary layout: real, or drawn where those are missing."""
    maker, folder = shared_data_set("make_cifar10_bin.py"), tmp_path_factory.mktemp("cifar")
    if maker is None:
        draw_cifar(folder)
        return folder
    subprocess.run([sys.executable, maker, folder, "--train", "500", "--test", "100"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """200 photographs, one in each of 200 class folders: ImageNet's, or drawn where those are missing."""
    archive, folder = shared_data_set("imagenet-sample-200.tar"), tmp_path_factory.mktemp("photographs")
    if archive is None:
        draw_photographs(folder)
        return folder
    with tarfile.open(archive) as tar:
        tar.extractall(folder)
    return folder / "imagenet-sample-200"


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The digits data set, written once for all tests."""
    from data.digits import open_digits

    return open_digits(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def numbered(tmp_path):
    """Makes a `Dataset` whose image number i is one flat colour that says i, so that batches can be told apart."""
    from data.dataset import Dataset
    from data.records import write_records

    def make(count, size=32, mirror=True):
        images = (np.full((size, size, 3), (i % 250 + 5, i // 250, 0), np.uint8) for i in range(count))
        write_records(tmp_path / "numbered.rec", zip(images, range(count)))
        records = dict.fromkeys(("train", "test"), tmp_path / "numbered.rec")
        return Dataset("numbered", count, records, size, (0.0,) * 3, (1.0,) * 3, mirror)

    return make

#include "launcher/train/resume_command.h"

#include <gtest/gtest.h>

namespace carousel {
namespace {

TEST(ResumeCommand, IsTheCommandWithItsLauncher) {
  const std::vector<std::string> arguments = {"build/carousel", "train", "--run_dir",
                                              "runs/a",         "--set", "train.steps=5"};
  EXPECT_EQ(ResumeCommand(arguments, "", 1, false),
            "build/carousel train --run_dir runs/a --set train.steps=5");
  EXPECT_EQ(ResumeCommand(arguments, "mpirun (Open MPI)", 4, false),
            "mpirun -np 4 build/carousel train --run_dir runs/a --set train.steps=5");
  EXPECT_EQ(ResumeCommand(arguments, "mpiexec", 2, false).substr(0, 13), "mpirun -np 2 ");
  EXPECT_EQ(ResumeCommand(arguments, "srun", 16, false).substr(0, 24), "srun --mpi=pmix -n 16 bu");
  EXPECT_EQ(ResumeCommand({"carousel", "train"}, "hand (CAROUSEL_RENDEZVOUS)", 2, false),
            "carousel train (on every rank)");
}

TEST(ResumeCommand, LeavesOutWhatIsForOneStartAndQuotesTheRest) {
  EXPECT_EQ(ResumeCommand({"carousel", "train", "--fresh", "--run_dir", "my runs/it's", "--set",
                           "sample.prompt=\"a $b\"", ""},
                          "", 1, false),
            "carousel train --run_dir 'my runs/it'\\''s' --set 'sample.prompt=\"a $b\"' ''");
}

TEST(ResumeCommand, UnderCarouselLaunchTheUserKnowsTheCommand) {
  EXPECT_EQ(ResumeCommand({"carousel", "train"}, "mpirun (Open MPI)", 4, true),
            "the same `carousel launch` command");
}
}  // namespace
}  // namespace carousel

// main() of tests on the emulation: --schedule=lifo|fifo|random[:SEED] chooses the order in which threads
// run.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "kernels/simt/emulator.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i], option = "--schedule=";
    if (argument.rfind(option, 0) != 0 || !carousel::emulator::SetSchedule(argument.substr(option.size()))) {
      std::fprintf(stderr, "unknown argument %s; use --schedule=lifo, fifo, random or random:SEED\n",
                   argv[i]);
      return 2;
    }
  }
  return RUN_ALL_TESTS();
}

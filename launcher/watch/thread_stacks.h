// Where all threads of this process are: for the report of a hang.
#pragma once
#include <string>

namespace carousel {

// Call once, early: the first stack that is taken loads a library.
void PrepareThreadStacks();
// The stacks of all threads but the calling one, which must not be needed by them (it holds no lock that they
// wait for). Each thread is interrupted by a real-time signal and has a moment to answer; one that does not
// (it sleeps in the kernel, or was stopped) is named with what the kernel says about it. Takes at most
// `seconds`. A process that is about to end may call this: nothing is repaired afterwards.
//   thread 4243 (carousel), sleeping
//     carousel::TokenFile::Read()
//     carousel::TrainLoader::Fill()
std::string StacksOfOtherThreads(double seconds);
}  // namespace carousel

#!/usr/bin/perl
# Prints the six novels of Jane Austen (public domain) as plain text, from the R package janeaustenr, without R.
#   apt-get download r-cran-janeaustenr && dpkg-deb -x r-cran-janeaustenr_*.deb .
#   austen_text.pl usr/lib/R/site-library/janeaustenr/data/Rdata.rdb > austen.txt
#
# Rdata.rdb is a row of chunks, one per book: a 4-byte big-endian length of the unpacked data, then a zlib stream of
# R's serialisation (R Internals, section 1.8, format "X": XDR) of a character vector with one element per line.
# Output: lines joined by newlines, a newline after each book, in file order. Fails if the file is not as described or if
# the text is not the 4,025,029 bytes with the digest below (--any-version prints it all the same).
use strict;
use warnings;
use Compress::Raw::Zlib;
use Digest::SHA qw(sha256_hex);

my $expected = '65b434d16a8755142bfa95ba19c5f9abd0d30cf3dffe3b6793e834f9f56dcc96';

my $any_version = @ARGV && $ARGV[0] eq '--any-version' ? shift @ARGV : 0;
@ARGV == 1 or die "usage: austen_text.pl [--any-version] Rdata.rdb > austen.txt\n";
my $path = $ARGV[0];
sub fail { die "austen_text.pl: $path: @_\n" }

open my $file, '<:raw', $path or fail("cannot open: $!");
my $packed = do { local $/; <$file> };
close $file;

# Takes the next $_[1] bytes of the buffer $_[0] at position $_[2], which moves on.
sub take {
  my (undef, $count, undef) = @_;
  $count >= 0 && $_[2] + $count <= length $_[0] or fail("cut off at byte $_[2] of a chunk");
  my $bytes = substr $_[0], $_[2], $count;
  $_[2] += $count;
  return $bytes;
}
sub take_int { return unpack 'l>', take($_[0], 4, $_[1]) }

# The lines of one serialised character vector.
sub lines_of {
  my ($data) = @_;
  my $at = 0;
  take($data, 2, $at) eq "X\n" or fail('a chunk is not in R\'s XDR format');
  my $version = take_int($data, $at);
  take($data, 8, $at);  # versions of R: the writer's, the oldest reader's
  if ($version == 3) {
    take($data, take_int($data, $at), $at);  # name of the native encoding
  } elsif ($version != 2) {
    fail("serialisation version $version; known: 2 and 3");
  }
  my $type = take_int($data, $at) & 0xff;
  $type == 16 or fail("a chunk holds type $type, not a character vector (16)");
  my $count = take_int($data, $at);
  $count >= 0 or fail('a vector of more than 2^31 lines');
  my @lines;
  for (1 .. $count) {
    my $element = take_int($data, $at) & 0xff;
    $element == 9 or fail("an element has type $element, not a string (9)");
    my $length = take_int($data, $at);
    push @lines, $length < 0 ? '' : take($data, $length, $at);  # -1 is NA
  }
  return @lines;
}

my $text = '';
while (length $packed) {
  length $packed > 4 or fail('cut off in a chunk\'s length');
  my $size = unpack 'N', substr $packed, 0, 4, '';
  my ($inflate, $status) = Compress::Raw::Zlib::Inflate->new(-ConsumeInput => 1);
  defined $inflate or fail("zlib: $status");
  my $data = '';
  $status = $inflate->inflate($packed, $data);
  $status == Z_STREAM_END or fail('damaged or cut off zlib stream');
  length $data == $size or fail('a chunk unpacks to ' . length($data) . " bytes, announced were $size");
  $text .= join("\n", lines_of($data)) . "\n";
}

my $digest = sha256_hex($text);
if ($digest ne $expected && !$any_version) {
  fail('gives ' . length($text) . " bytes with sha256 $digest; expected 4025029 bytes with $expected"
    . ' (another version of the package?); --any-version prints them all the same');
}
binmode STDOUT, ':raw';
print $text or fail("cannot write: $!");
close STDOUT or fail("cannot write: $!");

// What makes file systems of type erofs, in place of erofs-utils, which not every Debian has as new as
// containerd wants it.
module github.com/sluice-dev/sluice/test/cluster/binaries/erofs

go 1.26.0

require github.com/erofs/go-erofs v0.3.1

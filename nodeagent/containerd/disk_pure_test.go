// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/sluice-dev/sluice/nodeagent"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// disk100 is a disk of 100 GiB and 100,000 inodes, which keeps the margin of 256 MiB and 1,000 inodes.
func disk100(free amount, minFree float64) filesystem {
	return filesystem{
		dir: "/root", content: true, snapshots: true, free: free, total: amount{100 * gib, 100_000},
		line: amount{100 * gib, 100_000}.times(minFree),
	}
}

func TestWhatFitsOnADisk(t *testing.T) {
	for _, tt := range []struct {
		reason         string
		need, reserved amount
		free           amount
		minFree        float64
		missing        amount
	}{
		{"plenty of space", amount{gib, 0}, amount{}, amount{50 * gib, 50_000}, 0.15, amount{}},
		{"just enough", amount{35*gib - 256*mib, 0}, amount{}, amount{50 * gib, 50_000}, 0.15, amount{}},
		{"just too much", amount{35*gib - 256*mib + 1, 0}, amount{}, amount{50 * gib, 50_000}, 0.15, amount{1, 0}},
		{"what other pulls have reserved is not free", amount{35*gib - 256*mib, 0}, amount{gib, 0}, amount{50 * gib, 50_000}, 0.15, amount{gib, 0}},
		{"already below the line", amount{1, 0}, amount{}, amount{10 * gib, 50_000}, 0.15, amount{5*gib + 256*mib + 1, 0}},
		{"the administrator sets the line", amount{gib, 0}, amount{}, amount{10 * gib, 50_000}, 0.05, amount{}},
		{"too few inodes", amount{1, 0}, amount{}, amount{50 * gib, 15_500}, 0.15, amount{0, 500}},
		{"an image that has shown how many it takes", amount{1, 40_000}, amount{0, 10_000}, amount{50 * gib, 50_000}, 0.15, amount{0, 16_000}},
	} {
		s := shortage{filesystem: disk100(tt.free, tt.minFree), need: tt.need, reserved: tt.reserved}
		if got := s.missing(); got != tt.missing {
			t.Errorf("%s: %v are missing, want %v", tt.reason, got, tt.missing)
		}
	}
}

func TestADiskThatDoesNotCountItsInodesHasAnyNumber(t *testing.T) {
	f := filesystem{free: amount{bytes: gib}, total: amount{bytes: gib}}
	if s := (shortage{filesystem: f, need: amount{mib, 1000}}); s.missing() != (amount{}) {
		t.Errorf("%v are missing", s.missing())
	}
	if f.pastLine() {
		t.Error("it is past its line")
	}
}

func TestWhatIsSaidOfAShortage(t *testing.T) {
	bytes := &shortage{filesystem: disk100(amount{20 * gib, 50_000}, 0.15), need: amount{8 * gib, 0}, reserved: amount{gib, 0}}
	inodes := &shortage{filesystem: disk100(amount{50 * gib, 15_500}, 0.15), need: amount{gib, 0}}
	for err, want := range map[error]string{
		bytes:  "4352 MiB must be freed on /root: it has 20480 MiB of 102400 MiB free, of which 15616 MiB must stay free; the image may take 8192 MiB, and other pulls 1024 MiB",
		inodes: "500 inodes must be freed on /root: it has 15500 of 100000 free, of which 16000 must stay free; the image may take 0, and other pulls 0",
	} {
		if !errors.Is(err, nodeagent.ErrInsufficientDisk) || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%q, want %q", err, want)
		}
	}
}

func TestContentAndSnapshotsCountWhereTheyAre(t *testing.T) {
	n := need{content: 10, snapshots: amount{25, 3}}
	for _, tt := range []struct {
		content, snapshots bool
		want               amount
	}{{true, true, amount{35, 3}}, {true, false, amount{10, 0}}, {false, true, amount{25, 3}}} {
		if got := n.on(filesystem{content: tt.content, snapshots: tt.snapshots}); got != tt.want {
			t.Errorf("content %v, snapshots %v: %v, want %v", tt.content, tt.snapshots, got, tt.want)
		}
	}
	if got := expect(localContent{missing: 10, packed: 100}); got != (need{content: 10, snapshots: amount{250, 0}}) {
		t.Errorf("expect: %v", got)
	}
}

func TestADiskThatIsNotMountedIsNotChecked(t *testing.T) {
	r := &Runtime{Options: Options{MinFreeDisk: 0.15}}
	here, away := t.TempDir(), t.TempDir()+"/away"
	for reason, tt := range map[string]struct {
		daemon             daemonFacts
		content, snapshots bool
		filesystems        int
	}{
		"neither folder":      {daemonFacts{contentDir: away, snapshotDir: away}, false, false, 0},
		"both on one":         {daemonFacts{contentDir: here, snapshotDir: here}, true, true, 1},
		"content alone":       {daemonFacts{contentDir: here, snapshotDir: away}, true, true, 1},
		"snapshots alone":     {daemonFacts{contentDir: away, snapshotDir: here}, true, true, 1},
		"each on one":         {daemonFacts{contentDir: here, snapshotDir: "/proc"}, true, false, 2},
		"the other way round": {daemonFacts{contentDir: "/proc", snapshotDir: here}, true, false, 2},
	} {
		found, err := r.lookUp(tt.daemon)
		if err != nil || len(found) != tt.filesystems {
			t.Errorf("%s: %v, %v", reason, found, err)
			continue
		}
		if len(found) > 0 && (found[0].content != tt.content || found[0].snapshots != tt.snapshots) {
			t.Errorf("%s: %+v", reason, found[0])
		}
	}
}

func TestPullsThatRunAtTheSameTimeDoNotCountOnTheSameSpace(t *testing.T) {
	root := t.TempDir()
	var stat unix.Statfs_t
	if err := unix.Statfs(root, &stat); err != nil {
		t.Fatal(err)
	}
	r := &Runtime{Options: Options{MinFreeDisk: 1e-9}}
	daemon := daemonFacts{contentDir: root, snapshotDir: root}
	filesystems, err := r.lookUp(daemon)
	if err != nil {
		t.Fatal(err)
	}
	// percent is one percent of the content that would fill the disk, once it is unpacked too.
	percent := int64(float64(filesystems[0].room().bytes) / (1 + unpackedFactor) / 100)
	pulls := map[string]*account{}
	for _, name := range []string{"a", "b", "c", "d"} {
		m := newMeter(func(nodeagent.Progress) {})
		defer m.stop()
		pulls[name] = r.disk.openAccount(t.Context(), nodeagent.PullRequest{}, m)
	}
	none := func() {}
	for _, step := range []struct {
		reason  string
		happen  func()
		pull    string
		missing int64
		want    bool
	}{
		{"the first pull has the whole disk", none, "a", 60, true},
		{"the second gets no more than the first leaves", none, "b", 45, false},
		{"the second has reserved nothing", none, "c", 30, true},
		{"a pull that reserves again does not count twice", none, "a", 60, true},
		{"a pull that ended reserves nothing", func() { r.disk.close(pulls["c"]) }, "b", 35, true},
		{"there is too little left", none, "d", 15, false},
		{"received bytes leave the reservation", func() { pulls["a"].meter.addBytes(50 * percent) }, "d", 10, true},
	} {
		step.happen()
		content := step.missing * percent
		short, err := r.tryReserve(daemon, pulls[step.pull], expect(localContent{missing: content, packed: content}))
		if err != nil || (short == nil) != step.want {
			t.Errorf("%s: %v, %v, want it to fit: %v", step.reason, short, err, step.want)
		}
	}
}

func TestTheLessRoomTheMoreOftenADiskIsLookedAt(t *testing.T) {
	for _, tt := range []struct {
		reason string
		room   amount
		want   time.Duration
	}{
		{"plenty", amount{100 * gib, 10_000_000}, maxLookInterval},
		{"enough for a tenth of a second", amount{4 * gib / 10, 10_000_000}, 100 * time.Millisecond},
		{"few inodes", amount{100 * gib, 5000}, 10 * time.Millisecond},
		{"none", amount{-gib, 10_000_000}, minLookInterval},
	} {
		if got := lookAgainIn(tt.room); got.Round(time.Millisecond) != tt.want {
			t.Errorf("%s: %v, want %v", tt.reason, got, tt.want)
		}
	}
	// Written at the fastest, no look comes later than when the margin of a large disk has begun to go.
	rapid.Check(t, func(t *rapid.T) {
		room := rapid.Int64Range(0, 100*gib).Draw(t, "room")
		written := int64(lookAgainIn(amount{room, 1 << 40}).Seconds() * fastestBytes)
		if written-room > maxMarginBytes/8 {
			t.Fatalf("%d bytes are written beyond a room of %d", written-room, room)
		}
	})
}

func TestWhatAnImageHasShown(t *testing.T) {
	const image = digest.Digest("sha256:a")
	for _, tt := range []struct {
		reason   string
		reserved need
		taken    *amount
		others   int
		want     need
	}{
		{"it took more than expected", need{10, amount{25, 0}}, &amount{1000, 7}, 1, need{10, amount{1500, 11}}},
		{"it took no more than expected: others were the cause", need{10, amount{25, 9}}, &amount{20, 7}, 1, need{10, amount{25, 9}}},
		{"nobody had the time to look, and it was alone", need{10, amount{24, 0}}, nil, 0, need{10, amount{600, 900}}},
		{"nobody had the time to look, and it was not alone", need{10, amount{24, 0}}, nil, 1, need{10, amount{24, 0}}},
	} {
		a := &account{digest: image, reserved: tt.reserved, taken: tt.taken, drop: amount{400, 600}}
		d := disk{accounts: map[*account]bool{a: true}}
		for range tt.others {
			d.accounts[&account{}] = true
		}
		d.noteStopped(a)
		if got := d.correct(image, need{}); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.reason, got, tt.want)
		}
		if got := d.refusedNeed(image); got != tt.want {
			t.Errorf("%s: before it is asked for: %v, want %v", tt.reason, got, tt.want)
		}
	}
}

func TestALessonIsForgotten(t *testing.T) {
	var d disk
	d.noteRefused("sha256:a", need{content: 10})
	d.noteFull(&account{digest: "sha256:a"})
	if err := d.checkFull("sha256:a"); !errors.Is(err, nodeagent.ErrInsufficientDisk) {
		t.Errorf("after containerd had no space: %v", err)
	}
	if err := d.checkFull("sha256:b"); err != nil {
		t.Errorf("another image: %v", err)
	}
	l := d.lessons["sha256:a"]
	l.until, l.fullUntil = time.Now().Add(-time.Second), time.Now().Add(-time.Second)
	d.lessons["sha256:a"] = l
	if got := d.refusedNeed("sha256:a"); got != (need{}) {
		t.Errorf("an hour later: %v", got)
	}
	d.noteRefused("sha256:b", need{content: 10})
	if len(d.lessons) != 1 {
		t.Errorf("%d lessons are kept", len(d.lessons))
	}
}

func TestWhatSaysThatADiskIsFull(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{errors.New("rpc error: write /var/lib/containerd/tmp: no space left on device"), true},
		{errors.New("disk quota exceeded"), true},
		{errors.New("connection refused"), false},
		{fmt.Errorf("%w: 500: no space left on device", nodeagent.ErrRegistryUnavailable), false},
	} {
		if got := isFull(tt.err); got != tt.want {
			t.Errorf("%q: %v", tt.err, got)
		}
	}
}

package azure

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"example.com/tandem/deploy/e2e/azure/arm"
)

// azVersion is the version of azure-cli that TANDEM_AZURE_INSTALL=1 installs.
const azVersion = "2.91.0"

var (
	installed installation
	// report has a line for each case: what it made, and what it asserted.
	report struct {
		sync.Mutex
		lines []string
		total time.Duration
	}
)

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "azure:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		return 0, err
	}
	az, err := findAz(root)
	if err != nil {
		return 0, err
	}
	if az == "" {
		fmt.Printf("azure: skipped: az is not on PATH; TANDEM_AZURE_INSTALL=1 installs azure-cli %s below out/, 730 MB\n", azVersion)
		return 0, nil
	}
	folder, err := os.MkdirTemp("", "tandem-azure")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	installed = installation{root: root, copy: filepath.Join(folder, "repository"), az: az}
	if err := copyRepository(root, installed.copy); err != nil {
		return 0, err
	}
	if err := installed.logIn(folder); err != nil {
		return 0, err
	}
	installed.server, err = startAzServer(az, folder)
	if err != nil {
		return 0, err
	}
	code := m.Run()
	fmt.Println("azure: what each case made and asserted:")
	for _, line := range report.lines {
		fmt.Println("  " + line)
	}
	fmt.Printf("azure: together %.0f s, of which several cases share the CPUs\n", report.total.Seconds())
	return code, installed.server.close()
}

// findAz returns the path of az: the one that an earlier run installed, or the one on
// PATH, or a new installation if TANDEM_AZURE_INSTALL is set.
func findAz(root string) (string, error) {
	environment := filepath.Join(root, "out", "azure-cli-"+azVersion)
	az := filepath.Join(environment, "bin", "az")
	if _, err := os.Stat(filepath.Join(environment, "complete")); err == nil {
		return az, nil
	}
	if found, err := exec.LookPath("az"); err == nil {
		return found, nil
	}
	if os.Getenv("TANDEM_AZURE_INSTALL") == "" {
		return "", nil
	}
	fmt.Printf("azure: installing azure-cli %s in %s, once\n", azVersion, environment)
	for _, command := range [][]string{
		{"python3", "-m", "venv", "--clear", environment},
		{filepath.Join(environment, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", "azure-cli==" + azVersion},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, out)
		}
	}
	return az, os.WriteFile(filepath.Join(environment, "complete"), nil, 0o600)
}

// installation is what all rigs share.
type installation struct {
	root   string // of the repository
	copy   string // of its files, as they are now, with one commit
	az     string
	server *azServer
	// What az writes when it logs in at the server of this URL.
	loginURL      string
	configuration string
}

// rig is a Resource Manager, and an environment in which scripts talk to it: a copy of
// the repository, so that tests run side by side, and a home of its own.
type rig struct {
	*arm.Server
	t           *testing.T
	root        string // of the copy
	records     string // what the kubectl and curl of testdata record
	home        string
	environment []string
}

// logIn logs az in once, and keeps what it wrote.
func (i *installation) logIn(folder string) error {
	server, err := arm.Start(folder, arm.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	cmd := exec.Command("bash", "-c", server.Login())
	cmd.Env = append(server.Environment(), "PATH="+filepath.Dir(i.az)+string(os.PathListSeparator)+os.Getenv("PATH"), "HOME="+folder)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("log in: %w\n%s", err, out)
	}
	i.loginURL, i.configuration = server.URL(), server.Configuration()
	return nil
}

// newRig returns a rig with an empty subscription.
func newRig(t *testing.T, options arm.Options) *rig {
	t.Helper()
	folder := t.TempDir()
	options.Log = t.Logf
	if options.Kubeconfig == nil {
		options.Kubeconfig = []byte(entraKubeconfig)
	}
	server, err := arm.Start(folder, options)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	r := &rig{Server: server, t: t, root: filepath.Join(folder, "src"), records: filepath.Join(folder, "records"), home: filepath.Join(folder, "home")}
	require.NoError(t, copyFolder(installed.copy, r.root, "", ""))
	require.NoError(t, os.Symlink(filepath.Join(installed.root, "bin"), filepath.Join(r.root, "bin")))
	require.NoError(t, copyFolder(installed.configuration, server.Configuration(), installed.loginURL, server.URL()))
	stubs, err := filepath.Abs("testdata/bin")
	require.NoError(t, err)
	kubectl, _ := exec.LookPath("kubectl") // the stub does without
	r.environment = append(server.Environment(),
		"PATH="+strings.Join([]string{stubs, installed.server.client, filepath.Dir(installed.az), filepath.Join(installed.root, "bin"), os.Getenv("PATH")}, string(os.PathListSeparator)),
		"HOME="+r.home, "KUBECONFIG="+filepath.Join(r.home, "kubeconfig"), "TMPDIR="+folder, "LANG=C.UTF-8",
		"RECORDS="+r.records, "REAL_KUBECTL="+kubectl, "AZURE_CORE_NO_COLOR=yes",
	)
	settings, end, err := installed.server.serve(r.environment)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, end()) })
	r.environment = append(r.environment, settings...)
	require.NoError(t, os.MkdirAll(r.home, 0o750))
	require.NoError(t, os.MkdirAll(r.records, 0o750))
	return r
}

// withoutServer makes the rig run az as users do, without azserver.py.
func (r *rig) withoutServer() {
	for i, setting := range r.environment {
		r.environment[i] = strings.Replace(setting, installed.server.client+string(os.PathListSeparator), "", 1)
	}
}

// copyRepository copies the files that git knows, or would add, and commits the copy.
// Equal files get the same commit.
func copyRepository(from, to string) error {
	out, err := exec.Command("git", "-C", from, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		if err := copyFile(filepath.Join(from, name), filepath.Join(to, name), "", ""); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	const commit = "git init --quiet && git add --all && git -c user.name=test -c user.email=test@example.com commit --quiet --message test"
	cmd := exec.Command("sh", "-c", commit)
	cmd.Dir = to
	cmd.Env = append(os.Environ(), "GIT_AUTHOR_DATE=2026-08-01T00:00:00Z", "GIT_COMMITTER_DATE=2026-08-01T00:00:00Z", "GIT_CONFIG_GLOBAL=/dev/null")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("commit the copy: %w\n%s", err, out)
	}
	return nil
}

// copyFolder copies a folder, and replaces one text by another in its files.
func copyFolder(from, to, old, replacement string) error {
	return filepath.WalkDir(from, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		below, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		return copyFile(path, filepath.Join(to, below), old, replacement)
	})
}

func copyFile(from, to, old, replacement string) error {
	info, err := os.Lstat(from)
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if old != "" {
		content = bytes.ReplaceAll(content, []byte(old), []byte(replacement))
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o750); err != nil {
		return err
	}
	return os.WriteFile(to, content, info.Mode().Perm())
}

// result is what a command printed, and how it ended.
type result struct {
	stdout, stderr string
	err            error
}

func (r *rig) run(cmd *exec.Cmd, environment []string) result {
	var out, errOut bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.root, &out, &errOut
	cmd.Env = append(append([]string{}, r.environment...), environment...)
	err := cmd.Run()
	return result{out.String(), errOut.String(), err}
}

// script runs a script of scripts/aks with settings NAME=VALUE and arguments.
func (r *rig) script(name string, settings []string, arguments ...string) result {
	return r.run(exec.Command(filepath.Join(r.root, "scripts", "aks", name), arguments...), settings)
}

// killedScript is script, but all of its processes are killed after the first change that
// is not in seen, to which it is added. It reports whether there was one.
func (r *rig) killedScript(seen map[string]bool, name string, arguments ...string) (result, bool) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(r.root, "scripts", "aks", name), arguments...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	r.OnChange(func(c arm.Request) {
		// az repeats some changes, whether or not they were made before, and uploads all sources for each image.
		change := c.Method + ids.ReplaceAllString(c.Path, "ID")
		if strings.HasSuffix(c.Path, "/scheduleRun") {
			change += fmt.Sprint(c.Body["values"])
		}
		if !seen[change] {
			seen[change] = true
			cancel()
		}
	})
	defer r.OnChange(nil)
	got := r.run(cmd, nil)
	return got, ctx.Err() != nil
}

// recorded returns a file of the records, or "".
func (r *rig) recorded(name string) string {
	r.t.Helper()
	content, err := os.ReadFile(filepath.Join(r.records, name))
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(r.t, err)
	}
	return string(content)
}

// done adds a line to the report.
func done(t *testing.T, started time.Time, made, asserted string) {
	t.Helper()
	report.Lock()
	defer report.Unlock()
	state := "ok"
	if t.Failed() {
		state = "FAILED"
	}
	report.total += time.Since(started)
	report.lines = append(report.lines, fmt.Sprintf("%-34s %-6s %4.0fs | %s | %s", strings.TrimPrefix(t.Name(), "Test"), state, time.Since(started).Seconds(), made, asserted))
}

// addresses matches those of servers.
var addresses = regexp.MustCompile(`127\.0\.0\.1:[0-9]+`)

// ids matches what differs between equal runs.
var ids = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)

// summary returns one line for each change.
func summary(changes []arm.Request) string {
	var lines strings.Builder
	for _, c := range changes {
		fmt.Fprintln(&lines, ids.ReplaceAllString(c.String(), "ID"))
	}
	return lines.String()
}

// entraKubeconfig is what az aks get-credentials receives from a cluster with Entra.
const entraKubeconfig = `apiVersion: v1
kind: Config
clusters:
- name: tandem
  cluster: {server: "https://tandem-0000.hcp.eastus2.azmk8s.io:443"}
contexts:
- name: tandem
  context: {cluster: tandem, user: clusterUser_tandem_tandem}
current-context: tandem
users:
- name: clusterUser_tandem_tandem
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      command: kubelogin
      args: [get-token, --environment, AzurePublicCloud, --server-id, 6dae42f8-4368-4678-94ff-3960e28e3630, --client-id, 80faf920-1908-4b52-b5ef-a8e7bedfc67a, --tenant-id, 22222222-2222-4222-8222-222222222222, --login, devicecode]
`

// hasKubectl reports whether the stub of kubectl hands kubectl config to a real one.
func (r *rig) hasKubectl() bool {
	_, err := exec.LookPath("kubectl")
	return err == nil
}

"""Functions to compute CodeBLEU of: ours, with what each language's data flow is sensitive to.

Branches with and without `else`, loops in loops, several assignments at once, default values,
updates, comprehensions and closures, comments and docstrings. Functions are apart by an empty
comment line. Read by codebleu_pairs.py.
"""

SAMPLES = {
    "python": '''
def merge_intervals(intervals, gap=0, *, key=None):
    """Join what overlaps.

    Returns a new list.
    """
    merged = []
    for start, end in sorted(intervals, key=key):  # by their start
        if merged and start <= merged[-1][1] + gap:
            last_start, last_end = merged.pop()
            merged.append((last_start, max(last_end, end)))
        else:
            merged.append((start, end))
    return merged
#
def word_counts(lines, stop=("the", "a"), lower=True):
    counts: dict[str, int] = {}
    total = 0
    for line in lines:
        words = [w.lower() if lower else w for w in line.split() if w not in stop]
        for word in words:
            counts[word] = counts.get(word, 0) + 1
            total += 1
    return {word: n / total for word, n in counts.items()} if total else {}
#
def search(grid, start, goal):
    'Breadth first.'
    frontier, seen = [start], {start: None}
    while frontier:
        here = frontier.pop(0)
        if here == goal:
            break
        elif here is None:
            continue
        for step in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            there = here[0] + step[0], here[1] + step[1]
            if there in grid and there not in seen:
                seen[there] = here
                frontier.append(there)
    else:
        return None
    path = []
    while goal is not None:
        path.append(goal)
        goal = seen[goal]
    return path[::-1]
#
class Ledger:
    """Keeps accounts."""

    rate: float = 0.05

    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance, self.history = balance, []

    def deposit(self, amount):
        # Money that comes in.
        if amount <= 0:
            raise ValueError(f"not an amount: {amount}")
        self.balance += amount
        self.history.append(("deposit", amount))
        return self.balance

    @property
    def interest(self):
        return self.balance * self.rate
#
def retry(times, *errors, pause=0.1):
    def decorate(function):
        def wrapper(*args, **kwargs):
            for attempt in range(times):
                try:
                    return function(*args, **kwargs)
                except errors as error:
                    last = error
                    time.sleep(pause * 2 ** attempt)
            raise last

        return wrapper

    return decorate
#
async def fetch_all(urls, limit=4):
    semaphore = asyncio.Semaphore(limit)
    results = {}

    async def fetch(url):
        async with semaphore:
            if (text := await get(url)) is not None:
                results[url] = text
            else:
                results[url] = ""

    await asyncio.gather(*(fetch(url) for url in urls))
    names = [name for url in urls for name in results[url].split() if name]
    lookup = lambda url, default=None: results.get(url, default)
    return names, lookup
#
def label(item):
    item.kind = "plain"
    item.weight = 2
    return item
''',
    "javascript": """
function groupBy(items, key = (x) => x, { limit = 10, strict } = {}) {
  // Groups by a key.
  const groups = new Map();
  for (let i = 0; i < items.length && i < limit; i++) {
    const item = items[i];
    let name = key(item);
    if (!groups.has(name)) {
      groups.set(name, []);
    } else if (strict) {
      throw new Error(`twice: ${name}`);
    }
    groups.get(name).push(item);
  }
  return groups;
}
//
function average(values) {
  var sum = 0, n = 0;
  for (var i = 0; i < values.length; i++) {
    sum += values[i];
    n = n + 1;
  }
  if (n === 0) return null;
  return sum / n;
}
//
class Counter {
  #count = 0;
  static limit = 5;

  constructor(start) {
    this.#count = start || 0;
  }

  /* One more, up to the limit. */
  increment(by = 1) {
    this.#count += by;
    while (this.#count > Counter.limit) {
      this.#count--;
      by -= 1;
    }
    return this.#count;
  }
}
//
const debounce = (fn, wait) => {
  let timer = null;
  return function (...args) {
    clearTimeout(timer);
    timer = setTimeout(() => fn.apply(this, args), wait);
  };
};
//
async function load(path, retries = 3) {
  let attempt = 0;
  let last;
  while (attempt < retries) {
    try {
      const [text, meta] = await Promise.all([read(path), stat(path)]);
      const { size, mtime: changed = 0 } = meta;
      return { text, size, changed };
    } catch (error) {
      last = error;
      attempt++;
    }
  }
  throw last;
}
//
export function flatten(tree, depth) {
  const out = [];
  for (const node of tree) {
    if (Array.isArray(node) && depth > 0) {
      out.push(...flatten(node, depth - 1));
    } else {
      out.push(node);
    }
  }
  let text = 'a "quoted" text', other = "it's";
  do {
    depth--;
  } while (depth > 0);
  switch (out.length) {
    case 0:
      text = other;
      break;
    default:
      text += other;
  }
  return depth ? text : out;
}
//
function level(kind, step) {
  let level, bonus;
  if (kind > 1) {
    level += step;
    bonus += 1;
  } else {
    level += 2;
    bonus -= step;
  }
  return level * bonus;
}
""",
    "go": """
func Sum(values []int, limit int) (total int, err error) {
	// Adds up to the limit.
	for i := 0; i < len(values); i++ {
		total += values[i]
		if total > limit {
			return 0, errors.New("too much")
		} else if total == limit {
			break
		} else {
			limit--
		}
	}
	return total, nil
}
//
func Reverse(text string) string {
	var left, right = 0, len(text) - 1
	runes := []rune(text)
	for left < right {
		runes[left], runes[right] = runes[right], runes[left]
		left++
		right--
	}
	return string(runes)
}
//
func (s *Store) Get(key string) (Value, bool) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	var found Value
	value, ok := s.values[key]
	if !ok {
		s.misses++
		return found, false
	}
	s.hits = s.hits + 1
	found = value
	return found, true
}
//
func Count(words []string) map[string]int {
	counts := make(map[string]int)
	for _, word := range words {
		word = strings.ToLower(word)
		if _, known := counts[word]; known {
			counts[word]++
		} else {
			counts[word] = 1
		}
	}
	return counts
}
//
func Workers(n int, jobs <-chan Job) []Result {
	var wait sync.WaitGroup
	var results []Result
	out := make(chan Result)
	for i := 0; i < n; i++ {
		wait.Add(1)
		go func(id int) {
			defer wait.Done()
			for job := range jobs {
				out <- job.Run(id)
			}
		}(i)
	}
	for j, k := 0, n; j < k; j = j + 1 {
		select {
		case result := <-out:
			results = append(results, result)
		default:
			k = k - 1
		}
	}
	return results
}
//
type Shape interface {
	Area() float64
}

type Square struct{ side float64 }

/* Area of a square. */
func (s Square) Area() float64 {
	var area float64 = s.side * s.side
	switch {
	case area > 100:
		area = 100
	case area < 0:
		area = -area
	}
	return area
}
//
var Hash = func(key string) uint32 {
	var sum uint32
	for _, r := range key {
		sum = sum*31 + uint32(r)
	}
	return sum
}

func Level(kind, step int) int {
	var level, bonus int
	if kind > 1 {
		level = step
		bonus = 1
	} else {
		level = 2
		bonus = step
	}
	return level * bonus
}
""",
    "java": """
public static int gcd(int a, int b) {
    // Euclid.
    while (b != 0) {
        int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}
//
public List<Integer> primes(int limit) {
    boolean[] composite = new boolean[limit + 1];
    List<Integer> found = new ArrayList<>();
    for (int i = 2; i <= limit; i++) {
        if (composite[i]) {
            continue;
        }
        found.add(i);
        for (int j = i * i; j <= limit; j += i) {
            composite[j] = true;
        }
    }
    return found;
}
//
Map<String, Integer> count(Iterable<String> words, boolean fold) {
    Map<String, Integer> counts = new HashMap<>();
    int total = 0;
    for (String word : words) {
        String key = fold ? word.toLowerCase() : word;
        Integer before = counts.get(key);
        if (before == null) {
            counts.put(key, 1);
        } else if (before > 100) {
            total = total - 1;
        } else {
            counts.put(key, before + 1);
        }
        total++;
    }
    counts.put("total", total);
    return counts;
}
//
/** An account. */
public class Account {
    private final String owner;
    private long balance = 0, limit;

    public Account(String owner, long limit) {
        this.owner = owner;
        this.limit = limit;
    }

    public boolean withdraw(long amount) {
        /* Never below the limit. */
        long rest = balance - amount;
        if (rest < -limit) {
            return false;
        }
        balance = rest;
        return true;
    }
}
//
static double[][] multiply(double[][] left, double[][] right) {
    int n = left.length, m = right[0].length;
    double[][] product = new double[n][m];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) {
            double sum = 0;
            for (int k = 0; k < right.length; k++)
                sum += left[i][k] * right[k][j];
            product[i][j] = sum;
        }
    return product;
}
//
String read(Path path) throws IOException {
    StringBuilder text = new StringBuilder();
    String line;
    try (BufferedReader reader = Files.newBufferedReader(path)) {
        while ((line = reader.readLine()) != null) {
            text.append(line).append('\\n');
        }
    } catch (NoSuchFileException error) {
        String message = "missing: " + error.getMessage();
        logger.warn(message);
    }
    Function<String, String> trim = s -> s.trim();
    return trim.apply(text.toString());
}
""",
    "rust": """
fn clamp(value: f64, low: f64, high: f64) -> f64 {
    // Between both.
    if value < low {
        low
    } else if value > high {
        high
    } else {
        value
    }
}
//
pub fn word_counts(text: &str) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for word in text.split_whitespace() {
        let key = word.to_lowercase();
        *counts.entry(key).or_insert(0) += 1;
    }
    counts
}
//
impl<T: Clone> Stack<T> {
    pub fn new(limit: usize) -> Self {
        Stack { items: Vec::new(), limit }
    }

    fn push(&mut self, item: T) -> Result<(), Full> {
        if self.items.len() >= self.limit {
            return Err(Full);
        }
        self.items.push(item);
        Ok(())
    }
}
//
macro_rules! square {
    ($x:expr) => {
        $x * $x
    };
}

const LIMIT: u32 = 10;

fn longest<'a>(first: &'a str, second: &'a str) -> &'a str {
    match first.len().cmp(&second.len()) {
        Ordering::Less => second,
        _ => first,
    }
}
//
let mut total = 0;
let mut count = 1;
while count < limit {
    count += 1;
    total = total + count;
    if total > limit {
        total = limit;
    } else {
        count = count + step;
    }
}
for item in items.iter() {
    total += item.value;
    loop {
        total -= 1;
        if total < 0 { break; }
    }
}
while let Some(next) = queue.pop() {
    total = match next {
        Some(value) => value + total,
        None => 0,
    };
}
//
fn parse(line: &str) -> Option<(String, i64)> {
    let (name, rest) = line.split_once('=')?;
    let value: i64 = rest.trim().parse().ok()?;
    let scaled = if value > 0 { value * 2 } else { -value };
    Some((name.trim().to_string(), scaled))
}
//
let level = start;
let bonus = step;
match kind {
    Kind::Up => level = 2,
    Kind::Down(by) => { bonus = by; level = bonus; }
    _ => {}
}
show(level, bonus);
loop {
    let line = reader.next();
    if line.is_empty() { break; }
    size += line.len();
}
if size > limit { level = 1; } else { level = size; }
show(level);
let extra = start;
if ready { extra = 1; }
show(extra);
""",
    "c": """
int factorial(int n) {
    /* Of small numbers only. */
    int result = 1;
    while (n > 1) {
        result = result * n;
        n--;
    }
    return result;
}
//
static size_t copy(char *target, const char *source, size_t size) {
    size_t i;
    for (i = 0; i + 1 < size && source[i]; i++) {
        target[i] = source[i];
    }
    if (size > 0) {
        target[i] = '\\0';
    } else {
        i = 0;
    }
    return i;
}
//
struct node *insert(struct node *root, int key) {
    struct node **place = &root;
    while (*place) {
        if (key < (*place)->key)
            place = &(*place)->left;
        else if (key > (*place)->key)
            place = &(*place)->right;
        else
            return root; // is there
    }
    *place = malloc(sizeof **place);
    (*place)->key = key;
    (*place)->left = (*place)->right = NULL;
    return root;
}
//
#define MAX(a, b) ((a) > (b) ? (a) : (b))

void sort(int values[], int n) {
    int i, j, swap;
    for (i = 0; i < n; i++) {
        for (j = 0; j < n - i - 1; j++) {
            if (values[j] > values[j + 1]) {
                swap = values[j];
                values[j] = values[j + 1];
                values[j + 1] = swap;
            }
        }
    }
}
//
int parse(const char *text, struct options *options) {
    int count = 0, sign = 1;
    double value = 0.0;
    switch (*text) {
    case '-':
        sign = -1;
        text++;
        break;
    case '+':
        text += 1;
    default:
        break;
    }
    do {
        value = value * 10 + (*text - '0');
        count += 1;
    } while (*++text >= '0' && *text <= '9');
    options->value = sign * value;
    options->name = "parsed";
    return count ? count : -1;
}
//
int unfinished(int count) {
    int rest = count;
    if (rest > )
        return 0;
#if LIMIT > 10
    rest = LIMIT;
#endif
    return rest;
}
//
#ifdef TRACE
#define LOG(text) puts(text)
#else
#define LOG(text)
#endif

unsigned long hash(const char *text) {
    unsigned long h = 5381;
    int c;
    while ((c = *text++))
        h = ((h << 5) + h) ^ c;
    return h % MAX(1, buckets);
}
""",
    "cpp": """
template <typename T>
T largest(const std::vector<T>& values) {
    // Of at least one.
    T best = values.front();
    for (const auto& value : values) {
        if (value > best) {
            best = value;
        }
    }
    return best;
}
//
class Matrix {
public:
    Matrix(int rows, int columns) : rows_(rows), columns_(columns), cells_(rows * columns) {}

    double& at(int row, int column) { return cells_[row * columns_ + column]; }

    Matrix operator*(const Matrix& other) const {
        Matrix product(rows_, other.columns_);
        for (int i = 0; i < rows_; ++i)
            for (int j = 0; j < other.columns_; j++) {
                double sum = 0;
                for (int k = 0; k < columns_; k++) sum += cells_[i * columns_ + k];
                product.at(i, j) = sum;
            }
        return product;
    }

private:
    int rows_, columns_;
    std::vector<double> cells_;
};
//
std::string join(const std::vector<std::string>& parts, const std::string& by = ", ") {
    std::string text;
    bool first = true;
    for (size_t i = 0; i < parts.size(); i++) {
        if (!first) {
            text += by;
        } else {
            first = false;
        }
        text = text + parts[i];
    }
    return text;
}
//
int depth(const Node* node) {
    if (node == nullptr) return 0;
    int left = depth(node->left), right = 0;
    right = depth(node->right);
    int best = left > right ? left : right;
    while (best > limit) {
        best = best - 1;
        limit = limit + 1;
    }
    return best + 1;
}
//
auto counter(int start) {
    int count = start;
    auto next = [count](int by) mutable { count = count + by; return count; };
    try {
        next(1);
    } catch (const std::exception& error) {
        std::cerr << error.what() << std::endl; /* said */
        count = 0;
    }
    return next;
}
//
namespace shapes {
struct Circle : Shape {
    explicit Circle(double radius) : radius(radius) {}
    double area() const override { return 3.14159 * radius * radius; }
    double radius;
};

double total(std::initializer_list<Shape*> shapes) {
    double sum = 0;
    for (auto* shape : shapes) sum += shape->area();
    return sum;
}
}  // namespace shapes
""",
}
